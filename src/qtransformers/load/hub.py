"""The Hugging Face Hub: auxiliary files by allow-list, GGUF files by quant, into the usual cache.

huggingface_hub itself honours HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ModelNotFoundError, NetworkError, QTransformersError
from qtransformers.gguf.headers import HeaderFile
from qtransformers.load.download import Progress, Remote, locate, store
from qtransformers.load.files import ALLOWED, ALLOWED_BYTES, full_weights, is_allowed, looked_up, size_text
from qtransformers.load.references import Reference, choose, the_reference
from qtransformers.settings import Settings

DEMO = Path(__file__).parent.parent / "data" / "demo.gguf"
_OFFLINE = "is not in the cache, and the network is switched off (HF_HUB_OFFLINE). Download it while online, or pass a directory"


@dataclass(frozen=True)
class Hub:
    """How to reach the Hub; None leaves the choice to huggingface_hub's environment variables."""

    endpoint: str | None = None
    cache_dir: Path | None = None
    token: str | None = None
    offline: bool = False
    timeout: float = 5.0  # seconds to the first answer


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit, in bytes by name."""

    commit: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Fetched:
    """Auxiliary files brought from the Hub."""

    directory: Path
    fetched: int  # bytes that came over the network now
    weights: Mapping[str, int]  # one full set of weight files that stayed there, bytes by name
    note: str = ""


def fetch_auxiliary(ref: Reference, hub: Hub) -> Fetched:
    """Bring the allow-listed files of a repository into the cache, and nothing else.

    Raises ModelNotFoundError (no such repository or revision) and NetworkError (gated, unreachable, offline).
    """
    try:
        listing = list_files(ref, hub)
    except NetworkError as e:
        directory = cached_directory(ref, hub)
        if directory is None:
            raise
        return Fetched(directory, 0, {}, f"{ref}: using the copy in the cache, {directory} ({_reason(e)})")
    wanted = {name: n for name, n in listing.sizes.items() if is_allowed(name)}
    if not wanted:
        raise ModelNotFoundError(
            f"{ref} on the Hub has none of the files of a model's tokenizer or config ({', '.join(ALLOWED[:4])}, ...). "
            "Pass the repository of the original model as model_path."
        )
    paths, fetched = _download(ref, listing, wanted, hub)
    first = next(iter(wanted))
    directory = paths[first].parents[first.count("/")]
    return Fetched(directory, fetched, full_weights(listing.sizes))


def fetch_files(ref: Reference, names: Sequence[str], hub: Hub) -> dict[str, Path]:
    """Those of these files that a repository has, brought into the cache; errors as `fetch_auxiliary`, and for what is too large."""
    try:
        listing = list_files(ref, hub)
    except NetworkError:
        directory = cached_directory(ref, hub)
        if directory is None:
            raise
        return {name: directory / name for name in names if (directory / name).is_file()}
    wanted = {name: listing.sizes[name] for name in names if name in listing.sizes}
    return _download(ref, listing, wanted, hub)[0] if wanted else {}


def resolve_model(
    reference: str,
    settings: Settings | None = None,
    hub: Hub | None = None,
    check: Callable[[HeaderFile], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The GGUF file or folder that MODEL stands for: a path, `demo`, or `user/repo[:QUANT]`, downloaded when needed.

    Before a download `check` sees the header of the model, and may raise. Raises ModelNotFoundError (with the quants
    there are) and NetworkError.
    """
    path = local_model(reference)
    if path is not None:
        return path
    return fetch_gguf(the_reference(reference), the_hub(settings, hub), check, progress)


def local_model(reference: str) -> Path | None:
    """The path that MODEL stands for; None for what is not on this disk."""
    if reference == "demo":
        if not DEMO.is_file():
            raise ModelNotFoundError(
                f"{DEMO} is missing: this installation has no demo model. Install the package again."
            )
        return DEMO
    path = looked_up("model", reference)
    return path if path.exists() else None


def the_hub(settings: Settings | None = None, hub: Hub | None = None) -> Hub:
    """`hub`, or the Hub as the environment says; ConfigError for what is neither."""
    for name, value, kind in (("settings", settings, Settings), ("hub", hub, Hub)):
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{name}={shown(value)}; expected a {kind.__name__} of qtransformers, or None.")
    if hub is not None:
        return hub
    return Hub(offline=(settings or Settings.from_env()).offline)


@dataclass(frozen=True)
class Offer:
    """One quantisation on the Hub: its files, and all there are of the repository."""

    ref: Reference
    listing: Listing
    names: list[str]

    @property
    def nbytes(self) -> int:
        """Of all its files."""
        return sum(self.listing.sizes[name] for name in self.names)


def find_offer(ref: Reference, hub: Hub) -> Offer:
    """The quantisation a reference names, by one request for the listing."""
    listing = list_files(ref, hub)
    return Offer(ref, listing, choose(listing.sizes, ref))


def read_header(offer: Offer, hub: Hub) -> HeaderFile:
    """The headers of all its files, by range requests; no weights are fetched."""
    with _plain_errors(offer.ref):
        remotes = [_remote(offer, name, hub) for name in offer.names]
        return HeaderFile(offer.names, [r.size for r in remotes], [r.part for r in remotes], str(offer.ref))


def remote_parts(
    offer: Offer, names: Sequence[str], hub: Hub
) -> Iterator[tuple[str, int, Callable[[int, int], bytes]]]:
    """Name, size and the reading of bytes `[start, stop)` of files, by range requests."""
    with _plain_errors(offer.ref):
        for name in names:
            remote = _remote(offer, name, hub)
            yield name, remote.size, remote.part


def fetch_gguf(
    ref: Reference,
    hub: Hub,
    check: Callable[[HeaderFile], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring one quant of a GGUF repository into the cache, all its shards; the path of the file or first shard.

    An interrupted download is continued, and what came is held against the listed hash.
    """
    try:
        offer = find_offer(ref, hub)
    except NetworkError:
        directory = cached_directory(ref, hub)
        if directory is None:
            raise
        return directory / choose(_snapshot(directory), ref)[0]
    if check and missing(offer, hub):
        check(read_header(offer, hub))
    return bring(offer, hub, progress) / offer.names[0]


def missing(offer: Offer, hub: Hub) -> list[str]:
    """Its files that are not in the cache."""
    snapshot = repository_folder(offer.ref.repo, hub) / "snapshots" / offer.listing.commit
    return [name for name in offer.names if not (snapshot / name).is_file()]


def bring(offer: Offer, hub: Hub, progress: Progress | None = None) -> Path:
    """Its files into the cache, one after the other; the folder they are in."""
    left, commit = missing(offer, hub), offer.listing.commit
    at_hand = offer.nbytes - sum(offer.listing.sizes[name] for name in left)
    with _plain_errors(offer.ref):
        for name in left:
            show = partial(_of_all, progress, at_hand, offer.nbytes)
            store(_remote(offer, name, hub), repository_folder(offer.ref.repo, hub), commit, show)
            at_hand += offer.listing.sizes[name]
    _name_commit(offer.ref, commit, hub)
    return repository_folder(offer.ref.repo, hub) / "snapshots" / commit


def cached_gguf(ref: Reference, hub: Hub) -> Path | None:
    """The file or first shard of a quant that is in the cache; None where it is not, or not all of it."""
    directory = cached_directory(ref, hub)
    try:
        return directory / choose(_snapshot(directory), ref)[0] if directory else None
    except ModelNotFoundError:
        return None


def _snapshot(directory: Path) -> dict[str, int]:
    return dict.fromkeys((p.relative_to(directory).as_posix() for p in directory.rglob("*.gguf") if p.is_file()), 0)


def _of_all(progress: Progress | None, before: int, everything: int, done: int, total: int) -> None:
    """Report what of one file is done as a part of all files."""
    if progress:
        progress(before + done, everything)


def _remote(offer: Offer, name: str, hub: Hub) -> Remote:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(offer.ref.repo, name, revision=offer.listing.commit, endpoint=hub.endpoint)
    return locate(url, name, hub.token, hub.timeout, offer.ref.repo)


def _name_commit(ref: Reference, commit: str, hub: Hub) -> None:
    """Note which commit a branch was at, so that offline it is found."""
    if ref.revision != commit:
        named = repository_folder(ref.repo, hub) / "refs" / ref.revision
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(commit, encoding="utf-8")


def list_files(ref: Reference, hub: Hub) -> Listing:
    """The files of a repository; asks once, without retries."""
    if hub.offline:
        raise NetworkError(f"{ref} {_OFFLINE}")
    with _plain_errors(ref):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        info = api.model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=hub.timeout)
        return Listing(info.sha or ref.revision, {s.rfilename: s.size or 0 for s in info.siblings or []})


def _download(ref: Reference, listing: Listing, wanted: Mapping[str, int], hub: Hub) -> tuple[dict[str, Path], int]:
    """Where the wanted files lie in the cache, and the bytes that had to be fetched; NetworkError for one that is too large."""
    for name, n in wanted.items():
        if n > ALLOWED_BYTES:
            raise NetworkError(
                f"{ref}: {name} has {size_text(n)}; expected at most {size_text(ALLOWED_BYTES)} of such a file. Download it by hand if it is right."
            )
    folder = repository_folder(ref.repo, hub)
    snapshot = folder / "snapshots" / listing.commit
    missing = [name for name in wanted if not (snapshot / name).is_file()]
    offer = Offer(ref, listing, missing)
    with _plain_errors(ref), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store(_remote(offer, name, hub), folder, listing.commit), missing))
    _name_commit(ref, listing.commit, hub)
    return {name: snapshot / name for name in wanted}, sum(wanted[name] for name in missing)


def cache_folder(hub: Hub) -> Path:
    """Where huggingface_hub keeps what it fetched."""
    from huggingface_hub import constants

    return hub.cache_dir or Path(constants.HF_HUB_CACHE)


def repository_folder(repo: str, hub: Hub) -> Path:
    """The folder of a repository in the cache, whose layout is huggingface_hub's public one."""
    return cache_folder(hub) / f"models--{repo.replace('/', '--')}"


def cached_directory(ref: Reference, hub: Hub) -> Path | None:
    """The snapshot of a repository in the cache."""
    folder = repository_folder(ref.repo, hub)
    named = folder / "refs" / ref.revision
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else ref.revision
    directory = folder / "snapshots" / commit
    return directory if directory.is_dir() else None


@contextmanager
def _plain_errors(ref: Reference) -> Iterator[None]:
    """huggingface_hub's errors as ours, each with its remedy."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{ref.repo}"
    try:
        yield
    except QTransformersError:
        raise
    except errors.GatedRepoError as e:
        raise NetworkError(
            f"{ref} is gated: its authors want their terms accepted. Accept them on {page}, then set HF_TOKEN, or run: hf auth login"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise ModelNotFoundError(f"{ref.repo} on the Hub has no revision {ref.revision!r}. See {page}/refs.") from e
    except errors.RepositoryNotFoundError as e:
        raise ModelNotFoundError(
            f"{ref}: no such folder here, and no such repository on the Hub, or it is private. Check the spelling; "
            "for a private one set HF_TOKEN, or run: hf auth login"
        ) from e
    except errors.EntryNotFoundError as e:
        raise ModelNotFoundError(f"{ref} on the Hub lacks a file it lists ({_reason(e)}). Try again later.") from e
    except errors.OfflineModeIsEnabled as e:
        raise NetworkError(f"{ref} {_OFFLINE}") from e
    except errors.HfHubHTTPError as e:
        raise NetworkError(f"{ref}: the Hub refused ({_reason(e)}). Try again later, or pass a directory.") from e
    except Exception as e:  # its HTTP library has changed twice; each has its own family of errors
        raise NetworkError(
            f"{ref}: the Hub could not be reached ({_reason(e)}). Check the connection, or pass a directory."
        ) from e


def _reason(e: BaseException) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__

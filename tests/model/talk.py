"""What models are asked, and the demo file with other metadata."""

from qtransformers.gguf import GGUFFile, GGUFWriter

ASK = [{"role": "user", "content": "What is 7 plus 5?"}]
STORY = [{"role": "user", "content": "Tell me a story about a brave fox."}]
NAN = float("nan")


def rewritten(source, target, **metadata):
    """The demo file with other metadata; None removes a key (`.` is spelled `__`)."""
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    with GGUFFile(source) as gguf:
        kept = {key: value for key, value in gguf.metadata.items() if key not in changes}
        kept |= {key: value for key, value in changes.items() if value is not None}
        tensors = gguf.tensors.values()
        with GGUFWriter(target, kept, [(t.name, t.shape, t.type) for t in tensors]) as writer:
            for tensor in tensors:
                writer.write(tensor.name, tensor)
    return target

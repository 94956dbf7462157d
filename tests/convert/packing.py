"""How the goldens of recipes are written: a tensor's layers in a few characters."""

import re
from itertools import groupby


def by_suffix(values):
    """{"blk.*.attn_q.weight": {0: value, ...}, "output.weight": {-1: value}} of {name: value}."""
    found = {}
    for name, value in values.items():
        layer = re.match(r"blk\.(\d+)\.", name)
        key = f"blk.*.{name[layer.end() :]}" if layer else name
        found.setdefault(key, {})[int(layer[1]) if layer else -1] = value
    return found


def names(key, layers):
    return [key.replace("*", str(layer)) for layer in layers]


def ranges(layers):
    """[0, 1, 2, 5] as 0-2,5."""
    runs = [[b for _, b in run] for _, run in groupby(enumerate(sorted(layers)), lambda p: p[1] - p[0])]
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def layers(text):
    """0-2,5 as [0, 1, 2, 5]; "" for a tensor of no layer."""
    if not text:
        return [-1]
    parts = [part.split("-") for part in text.split(",")]
    return [i for part in parts for i in range(int(part[0]), int(part[-1]) + 1)]


def packed(types):
    """{name: type} by type: {"blk.*.attn_v.weight": "Q6_K 0-3,6 Q4_K 4-5"}."""
    found = {}
    for key, of_layer in by_suffix(types).items():
        by_type = {}
        for layer, type_ in of_layer.items():
            by_type.setdefault(type_, []).append(layer)
        found[key] = " ".join(t if at == [-1] else f"{t} {ranges(at)}" for t, at in by_type.items())
    return found


def unpacked(found):
    """The reverse of `packed`."""
    types = {}
    for key, text in found.items():
        words = text.split()
        pairs = zip(words[::2], words[1::2], strict=True) if "*" in key else [(words[0], "")]
        types.update({name: type_ for type_, at in pairs for name in names(key, layers(at))})
    return types


def shapes_packed(shapes):
    """{name: shape} as {"blk.*.attn_q.weight": {"0-31": shape}}."""
    found = {}
    for key, of_layer in by_suffix({n: tuple(s) for n, s in shapes.items()}).items():
        by_shape = {}
        for layer, shape in of_layer.items():
            by_shape.setdefault(shape, []).append(layer)
        found[key] = {ranges(at) if at != [-1] else "": shape for shape, at in by_shape.items()}
    return found


def shapes_unpacked(found):
    """The reverse of `shapes_packed`."""
    return {
        name: tuple(shape)
        for key, rows in found.items()
        for at, shape in rows.items()
        for name in names(key, layers(at))
    }

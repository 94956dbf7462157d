"""Rewrites a chat template's syntax tree so that loops, operators, comparisons and text report to the sandbox.

The rewritten template calls `on_loop`, `on_join`, ... of its environment, names that no template can spell.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

from qtransformers.errors import TemplateError


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's part for training; rendering shows what is in it."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return found


# Compiling takes time in proportion to both. Ordinary templates have a part every 11 characters or so.
MAX_NODES = 20_000
MAX_NESTING = 20

FORBIDDEN: dict[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from ... import",
    nodes.Extends: "extends",
    nodes.ScopedEvalContextModifier: "autoescape",
}


def metered(tree: nodes.Template) -> nodes.Template:
    """The tree with every charge in it; TemplateError for a statement that reaches outside the template."""
    return _Metered().visit(tree)


class _Metered(NodeTransformer):
    """Puts the charges into a template's syntax tree."""

    def __init__(self) -> None:
        self._nodes = self._depth = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) in FORBIDDEN:
            raise TemplateError(
                f"chat template, line {node.lineno}: {{% {FORBIDDEN[type(node)]} %}} is not available to chat templates, "
                "which are one file and plain text. Pass another template with prompt_format=."
            )
        self._nodes += 1
        self._depth += isinstance(node, nodes.Stmt)
        if self._nodes > MAX_NODES or self._depth > MAX_NESTING:
            found = f"{MAX_NODES:,} parts" if self._nodes > MAX_NODES else f"{MAX_NESTING} statements inside each other"
            raise TemplateError(f"the chat template has more than {found}. Pass another with prompt_format=.")
        node = super().generic_visit(node, *args, **kwargs)
        self._depth -= isinstance(node, nodes.Stmt)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _charge("on_loop", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_join", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _charge("on_used", pair.key)
        return _charge("on_made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides: list[Any] = [node, *node.ops]
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = _charge("on_used", side.expr)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        length = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        if not length:
            return node
        return [nodes.ExprStmt(_charge("on_text", nodes.Const(length, lineno=node.lineno)), lineno=node.lineno), node]


def _charge(method: str, *args: Any) -> nodes.Call:
    line = args[0].lineno if args else 1
    return nodes.Call(nodes.EnvironmentAttribute(method, lineno=line), list(args), [], None, None, lineno=line)

"""Templates that attack, and that the sandbox does not change what honest ones write."""

import json
import time
import tracemalloc
from datetime import datetime

import pytest

from qtransformers.errors import TemplateError
from qtransformers.load.chat.budget import Limits
from qtransformers.load.chat.costs import FILTERS, TESTS
from qtransformers.load.chat.sandbox import MAX_SOURCE, Template

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def render(source, **variables):
    return Template(source).render(variables)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m['content'] ~ 1 }}{{ loop.last }}/{% endfor %}", "1userhi1False/2assistantyo1True/"),
        ("{% for m in messages %}{{ loop.length }}{{ loop.nextitem.role if not loop.last }}{% endfor %}", "2assistant2"),
        ("{{ messages|map(attribute='role')|join(', ') }}", "user, assistant"),
        ("{{ (messages|selectattr('role', 'equalto', 'user')|list)|length }}", "1"),
        ("{{ messages|rejectattr('role', 'eq', 'user')|map(attribute='content')|first }}", "yo"),
        ("{{ messages[1:][0].content }}{{ messages[-1]['role'] }}{{ 'abc'[::-1] }}", "yoassistantcba"),
        ("{% set ns = namespace(x=1, y='a') %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}{{ ns.y }}", "3a"),
        ("{% macro m(a, b='-') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(2, b=3) %}x{% endcall %}", "1-23x"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}{% with y = 2 %}{{ y }}{% endwith %}", "a1B2"),
        ("{{ {'a': 1, 'b': [1, 2]}|tojson }}{{ {'é': '<&'}|tojson(indent=2) }}", '{"a": 1, "b": [1, 2]}{\n  "é": "<&"\n}'),
        ("{{ [1, 'é']|tojson(ensure_ascii=True, separators=(',', ':')) }}{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}", '[1,"\\u00e9"]{"a": 2, "b": 1}'),
        ("{{ ' a '.strip() }}{{ 'a,b'.split(',')[1] }}{{ 'aXb'.replace('X', '-') }}{{ '-'.join(['a', 'b']) }}{{ 'a'.center(5) }}|", "aba-ba-b  a  |"),
        ("{{ '%s=%03d' % ('a', 7) }}{{ '%(x)s' % {'x': 1} }}{{ '%s'|format(2) }}{{ '{}-{a:>3}'.format(1, a='b') }}", "a=007121-  b"),
        ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 3 * 'ab' }}{{ [1] * 2 }}{{ [1] + [2] }}{{ 1 / 2 }}{{ -3 }}", "102433ababab[1, 1][1, 2]0.5-3"),
        ("{{ [3, 1, 2]|sort|join }}{{ [1, 2, 3]|sum }}{{ [{'a': 2}]|sum('a') }}{{ [1, 1]|unique|list }}{{ 'a\nb'|indent(2) }}", "12362[1]a\n  b"),
        ("{{ range(3)|list }}{{ [1, 2, 3]|batch(2)|list }}{{ dict(a=1)|items|list }}{{ {'a': 1}.items()|list }}", "[0, 1, 2][[1, 2], [3]][('a', 1)][('a', 1)]"),
        ("{{ 'a' in 'abc' }}{{ 1 in [1] }}{{ x is defined }}{{ none is none }}{{ 'a' is string }}{{ [] is iterable }}{{ 3 is odd }}", "TrueTrueFalseTrueTrueTrueTrue"),
        ("{{ undefined_thing }}{{ messages[0].nothing }}{{ x|default('d') }}{{ none|default('d', true) }}|", "dd|"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}{% for x in [] %}{% else %}e{% endfor %}", "a1e"),
        ("{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{{ loop.depth }}{% endfor %}", "12232131"),
        ("a{% generation %}b{{ 1 }}{% endgeneration %}c", "ab1c"),
        ("  {%- if true %}\n  x\n  {%- endif %}\n{% if true %}\ny\n{% endif %}z", "  xy\nz"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j = joiner('+') %}{{ j() }}1{{ j() }}2", "aba1+2"),
        ("{{ 'x'|safe + '<' }}{{ '<'|e }}", "x&lt;&lt;"),
        ("{{ [[1, 2], (3,), {'a': none}, 1.5, true] }}", "[[1, 2], (3,), {'a': None}, 1.5, True]"),
        ("{% block a %}x{% endblock %}{{ self.a() }}", "xx"),
    ],
)  # fmt: skip
def test_what_templates_write(source, expected):
    assert render(source, messages=MESSAGES) == expected


def test_the_same_as_plain_jinja():
    """Every operation is rewritten: the result may not be."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source = """
{%- set ns = namespace(found=[], text='') -%}
{%- for m in messages -%}
  {%- if m.content is string and ('h' in m.content or m.role > 'b') -%}
    {%- set ns.found = ns.found + [m.role ~ ':' ~ loop.index0] -%}
  {%- elif not m.content -%} {{- 'none' -}}
  {%- endif -%}
  {%- set ns.text = ns.text ~ (m.content|trim|upper)[:3] ~ '%-4s|' % m.role[:2] -%}
{%- endfor %}
{{ ns.found }} {{ ns.text }} {{ messages|length * 2 - 1 }} {{ {'n': messages|groupby('role')|map('first')|list, 'm': (1, 2)} }}
{{ messages|sort(attribute='content')|map(attribute='content')|join('~') }} {{ "a" if 1 < 2 <= 2 != 3 else "b" }}
"""
    messages = [*MESSAGES, {"role": "tool", "content": "  what  "}, {"role": "user", "content": ""}]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    assert render(source, messages=messages) == plain.render(messages=messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ lipsum.__globals__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ().__class__ }}{{ ().__class__.__base__ }}",
        "{{ (''|attr('__class__')).x }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ raise_exception.__code__.co_code }}",
        "{{ range.__self__.x }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ self.__init__.__globals__ }}",
        "{{ loop.__class__ }}{% for x in [1] %}{{ loop.__class__.__mro__ }}{% endfor %}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{{ messages|map(attribute='__class__.__mro__')|first|first }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '%s'.__mod__ }}{{ '%s'.__mod__(1) }}",
        "{{ {}.__class__.fromkeys('ab') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages.sort() }}",
        "{{ 'x'.encode() }}",
        "{{ 'x'.maketrans('a', 'b') }}",
        "{{ (5).to_bytes(3, 'big') }}",
        "{{ (messages|map('upper')).gi_frame.f_globals }}",
        "{{ (messages|map('upper')).close() }}",
        "{{ [].x.y }}",
        "{{ 'a'|urlize }}",
        "{{ 'a'|pprint }}",
        "{{ [1]|random }}",
        "{% include 'x' %}",
        "{% import 'os' as x %}",
        "{% from 'os' import path %}",
        "{% extends 'base' %}",
        "{% autoescape true %}x{% endautoescape %}",
        "{% debug %}",
        "{% do messages.append(1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}",
        "{% set messages.x = 1 %}",
        "{{ config.items() }}",
    ],
)
def test_nothing_of_python_is_reached(source):
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(TemplateError):
        render(source, messages=messages)
    assert messages == MESSAGES


DOUBLE = "{% set ns = namespace(a=['x'], b=['x'], t=('x',), s='x', n=3) %}{% for i in range(70) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}%s{% endfor %}"  # fmt: skip


def doubling(step, use=""):
    return DOUBLE.replace("%s", step) + use


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10**9) %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) if false %}{% endfor %}" * 300,
        "{% for a in range(3000) %}{% for b in messages|list * 3000 %}{{ b.role == 'x' }}{% endfor %}{% endfor %}",
        "{{ range(10**9)|list }}",
        "{{ range(10**18)|sum }}",
        "{{ range(10**9)|map('string')|join }}",
        "{{ range(10**9)|batch(2)|list }}",
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [0] * 10**9 }}",
        "{{ (0,) * 10**9 }}",
        "{{ 10**1000**10 }}",
        "{{ 9**999999999 }}",
        "{{ 2**4096 * 2**4096 }}",
        "{{ 'a'|center(10**9) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'.rjust(10**9) }}",
        "{{ 'a'.zfill(10**9) }}",
        "{{ ('a'|safe).center(10**9) }}",
        "{{ '\\t'.expandtabs(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%-1000000000s' % 'a' }}",
        "{{ '%.1000000000f' % 1.5 }}",
        "{{ '%(a)1000000000d' % {'a': 1} }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '{0:>{w}}'.format(1, w=1000000000) }}",
        "{{ ('{0}' * 10000).format('a' * 100000) }}",
        "{{ ('%(a)s' * 10000) % {'a': 'a' * 100000} }}",
        "{{ 'a'|indent(10**9) }}",
        "{{ ('\\n' * 100000)|indent(100000) }}",
        "{{ ('\\n' * 100000)|indent('a' * 100000) }}",
        "{{ range(100000)|join('a' * 100000) }}",
        "{{ ('a' * 100000).join(range(100000)|map('string')) }}",
        "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ [1]|batch(10**9, 0)|list }}",
        "{{ [1]|slice(10**9)|list }}",
        "{{ 1.5|round(10**9) }}",
        "{{ [[0] * 1000] * 1000|sum(start=[]) }}",
        "{{ {'a': [1, [2]]}|tojson(indent=10**9) }}",
        "{{ ([0] * 100000)|tojson(separators=('a' * 1000, ':')) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ strftime_now('%Y' * 1000) }}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for x in [1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% call m() %}{% endcall %}{% macro m() %}{{ caller() }}{% endmacro %}{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
        doubling("", "{{ ns.a }}"),
        doubling("", "{{ ns.a|string }}"),
        doubling("", "{{ ns.a ~ 'x' }}"),
        doubling("", "{{ '%s' % ns.a }}"),
        doubling("", "{{ '%s' % [ns.a] }}"),
        doubling("", "{{ '{}'.format(ns.a) }}"),
        doubling("", "{{ ns.a|tojson }}"),
        doubling("", "{{ ns.a|upper }}"),
        doubling("", "{{ [ns.a]|join }}"),
        doubling("", "{{ ns.a == ns.b }}"),
        doubling("", "{{ ns.a in [ns.b] }}"),
        doubling("", "{{ ns.a is eq ns.b }}"),
        doubling("", "{{ [ns.a, ns.b]|sort }}"),
        doubling("", "{{ [ns.a]|select('eq', ns.b)|list }}"),
        doubling("", "{{ [ns.a].index(ns.b) }}"),
        doubling("", "{% for x in [1] %}{{ loop.changed(ns.a) }}{{ loop.changed(ns.b) }}{% endfor %}{{ ns.a|string }}"),
        doubling("", "{{ raise_exception(ns.a) }}"),
        doubling("", "{{ '{0.a}'.format(ns) }}"),
        doubling("", "{{ '{0[a]!r}'.format(ns) }}"),
        doubling("", "{{ '{0[:].a}'.format({':': ns}) }}"),
        doubling("", "{{ '{x.current}'.format_map({'x': cycler(ns.a)}) }}"),
        doubling("", "{% for x in [1, ns.a] %}{{ '{0.nextitem}'.format(loop) }}{% endfor %}"),
        doubling("", "{{ [ns]|join(attribute='a') }}"),
        doubling("", "{{ [namespace(x=ns.a), namespace(x=ns.b)]|sort(attribute='x') }}"),
        doubling("", "{{ [namespace(x=ns.a), namespace(x=ns.b)]|groupby('x') }}"),
        doubling("", "{{ ns.a|safe }}"),
        doubling("", "{{ 1|attr(ns.a) }}"),
        doubling("", "{{ [1]|map(ns.a)|list }}"),
        doubling("", "{{ [1]|select(ns.a)|list }}"),
        doubling("", "{{ {}[ns.a].x }}"),
        "{{ '{0[}]:{1}}'.format({'}': 1}, 1000000000) }}",
        doubling("{% set ns.t = (ns.t, ns.t) %}", "{{ {ns.t: 1} }}"),
        doubling("{% set ns.s = ns.s ~ ns.s %}"),
        doubling("{% set ns.s = ns.s + ns.s %}"),
        doubling("{% set ns.t = ns.t + ns.t %}"),
        doubling("{% set ns.n = ns.n * ns.n %}"),
        doubling("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% for i in range(100000) %}" + "a" * 1000 + "{% endfor %}",
        "{% for i in range(100000) %}{% set x %}" + "a" * 1000 + "{% endset %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + ['a' * 100000 ~ i] %}{% endfor %}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ {ns.t: 1} }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ {}[ns.t] }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ {}.get(ns.t) }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ dict([[ns.t, 1]]) }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ [ns.t]|unique|list }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = {1: ns.t}.items()|first %}{% endfor %}{{ ns.t in {} }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace(t=1) %}{% for i in range(3000) %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.t|tojson }}",
        "{{ ('9' * 1000000)|int + 1/0 }}",
        "{% set s = 'a' * 1000000 %}" + "{% set x = s[1:] %}" * 2900,
        "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ 'b' in s }}{{ s.count('b') }}{% endfor %}",
    ],
)  # fmt: skip
def test_what_takes_too_much_is_stopped(source):
    start = time.perf_counter()
    with pytest.raises(TemplateError):
        render(source, messages=MESSAGES)
    assert time.perf_counter() - start < 20  # the deadline is 5 s; machines may be busy


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000,
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{{ " + "1+" * 5000 + "1 }}",
        "{{ 1" + "|string" * 5000 + " }}",
        "{{ x" + ".a" * 5000 + " }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{% for x in y %}" * 100 + "{% endfor %}" * 100,
        "{{ " + "9" * 5000 + " }}",
        "{{" * 30_000,
        "{#" * 30_000,
        "{% raw %}" * 10_000,
        "{%- " * 10_000,
        "\n" * 60_000 + "{{",
        "{{ '" + "a" * 60_000,
        "{{ 1 ",
        "{% foo %}",
        "{{ 'a'|nofilter }}",
        "{% endfor %}",
        "{{ x is nosuchtest }}",
        "x" * (MAX_SOURCE + 1),
        "{% for x in y %}" * 60 + "{{a}}" * 10_000 + "{% endfor %}" * 60,
        "{% macro m() %}" * 60 + "{{a}}" * 10_000 + "{% endmacro %}" * 60,
        "{{ [" + "1," * 30_000 + "] }}",
    ],
)  # fmt: skip
def test_sources_that_cannot_be_compiled(source):
    start = time.perf_counter()
    with pytest.raises(TemplateError):
        Template(source)
    assert time.perf_counter() - start < 10


def test_the_largest_source_compiles_in_seconds():
    start = time.perf_counter()
    assert render("{% for x in [1] %}" * 10 + "{{a}}" * 9_900 + "{% endfor %}" * 10, a="") == ""
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "source, message",
    [
        ("a\n\n{{ 1 + 'a' }}", r"chat template, line 3: unsupported operand"),
        ("a\n{% foo %}", r"chat template, line 2: Encountered unknown tag 'foo'\. Pass another with prompt_format="),
        ("\n{{ 'a' * 10**9 }}", r"line 2: it makes a value of 1,000,000,000 characters or items; at most 1,048,\d+ .* allowed\. Send fewer"),
        ("{{ '%9999d' % 1 }}", r"line 1: it makes a value of unbounded size"),
        ("{% for i in range(100000) %}{% for i in range(100000) %}{% endfor %}{% endfor %}", r"line 1: it takes more than [\d,]+ units of work"),
        ("\n\n{% include 'a' %}", r"line 3: {% include %} is not available"),
        ("{{ raise_exception('Only user\nand assistant!') }}", r"the chat template refuses these messages: Only user\nand assistant!"),
        ("{{ ''.__class__.x }}", r"line 1: access to attribute '__class__' of 'str' object is unsafe"),
        ("x" * 200_000, r"has 200,000 characters; at most 65,536"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"line 1: it is nested too deeply"),
    ],
)  # fmt: skip
def test_errors_name_place_and_cause(source, message):
    with pytest.raises(TemplateError, match=message):
        render(source)


def test_a_refusal_is_cut_short():
    with pytest.raises(TemplateError) as e:
        render("{{ raise_exception('x' * 1000000) }}")
    assert len(str(e.value)) < 1100


def test_limits_grow_with_the_messages():
    long = [{"role": "user", "content": "x" * 3_000_000}]
    source = "{% for m in messages %}{% if 'y' in m.content %}{% endif %}{{ m.role + m.content.strip() + m.content|trim }}{% endfor %}"
    assert len(render(source, messages=long)) == 6_000_004
    many = [{"role": "user", "content": "ab"}] * 20_000
    assert (
        len(render("{% for m in messages %}<|{{ m.role }}|>{{ m.content|trim }}{% endfor %}", messages=many))
        == 20_000 * 10
    )


def test_time_is_limited_too():
    with pytest.raises(TemplateError, match=r"takes longer than 0.05 s"):
        Template("{% for i in range(100000) %}{{ i }}{% endfor %}").render({}, limits=Limits(2**40, 2**60, 0.05))


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + ['🦊' * 50000 ~ i] %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [i + 1000] %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l, {'a': [i] * 1000}] %}{% endfor %}",
        "{% set s = '🦊' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(99) %}{% set ns.l = [ns.l, s[i:], s|list, s.split('🦊')] %}{% endfor %}",
        "{% for i in range(100000) %}{{ '🦊' * 1000 }}{% endfor %}",
    ],
)  # fmt: skip
def test_memory_stays_small(source):
    template = Template(source)
    tracemalloc.start()
    with pytest.raises(TemplateError):
        template.render({})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**16 < peak < 300 * 2**20


def test_the_clock_can_be_set():
    now = datetime(2024, 7, 26, 9, 5)
    assert Template("{{ strftime_now('%d %b %Y') }}{{ strftime_now('%-d') }}").render({}, now=now) == "26 Jul 202426"
    assert Template("{{ strftime_now('%Y') }}").render({}) == str(datetime.now().year)


def test_renderings_do_not_share_a_budget():
    template = Template("{% for i in range(100000) %}{% endfor %}" * 10)
    assert [template.render({}) for _ in range(20)] == [""] * 20


def test_every_listed_filter_and_test_is_jinjas():
    from jinja2 import Environment

    environment = Environment()
    assert set(FILTERS) <= set(environment.filters) and set(TESTS) <= set(environment.tests)
    assert set(environment.tests) == set(TESTS)
    assert set(environment.filters) - set(FILTERS) == {"pprint", "random", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr"}  # fmt: skip


def test_json_of_what_is_no_json():
    with pytest.raises(TemplateError, match="not JSON serializable"):
        render("{{ undefined_thing|tojson }}")
    assert json.loads(render("{{ x|tojson }}", x={"a": [None, True, 1.5, "\u2028"]})) == {
        "a": [None, True, 1.5, "\u2028"]
    }

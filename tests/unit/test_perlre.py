# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of Perl match in Python what they match in Perl, or are refused; perl itself is the witness."""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sec-monitor"))

from monitorlib import perlre, ruleindex  # noqa: E402

PATTERNS = [
    r"^\{\"time\":\"[^\"]{24}\",\"source\":\"(/host:(\w+))",
    r"(\d+\.)+(\d+)$",
    r"(?<user>[[:alpha:]_]\w*)=([^,;\s]*)",
    r"(?i)error|warn(?:ing)?",
    r"x{2,3}?y*+z",
    r"(?>a+|b)c",
    r"(a)|(b)",
    r"\bfoo\b.*\Bx",
    r"[]\-\\a^]+",
    r"[\w.\x2d\t]+@[[:^space:]]+",
    r"(['\"]).*?\1",
    r"(?<q>['\"])\w*\k<q>",
    r"^\s*#|\h\v?",
    r"(?:(?i:abc)d)",
    r"(?=.*b)a.(?!c)",
    r"(?<=a)b|(?<!a)c",
    r"\Afoo\Z|bar\z",
    r"a(?#note)b",
    r"\x41\x{42}C?\0",
    r"[\d-z]|[a-]",
    r"\.\*\+\?\(\)\[\]\{\}\|\^\$\/\-\_\"",
    r"(a|)b",
    r"()",
    r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?",
]
TEXTS = [
    '{"time":"2026-11-23T08:00:00.123Z","source":"/host:h7/app:web-1","type":"a.b"}',
    "10.0.0.7", "user=bob, x_1=y;", "ERROR Warning", "xxyz xxxz", "aaac", "b", "a foo x", "a]\\^-b", "a.b-c@d e",
    "'x' \"y\"", "  # x", "AbCd abcD", "aab axc ac", "foo bar", "ab", "AB", "-z5", ".*+?()[]{}|^$/-_\"", "", "-1.5e+7",
    "caf\xe9 \xff", "foo\tx\x0by",
]  # fmt: skip
PERL = r"""
use JSON::PP; binmode STDOUT, ':raw'; my $asked = decode_json(join '', <STDIN>); my @made;
for my $pattern (@{$asked->[0]}) {
    for my $text (@{$asked->[1]}) {
        my @found = $text =~ /$pattern/;
        push @made, @found ? [$-[0], $+[0], $#+ ? [map { defined $_ ? $_ : undef } @found] : []] : undef;
    }
}
print JSON::PP->new->ascii->encode(\@made);
"""


def test_what_perl_matches_is_matched_with_the_same_groups():
    done = subprocess.run(["perl", "-e", PERL], input=json.dumps([PATTERNS, TEXTS]).encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    for (pattern, text), theirs in zip(itertools.product(PATTERNS, TEXTS), json.loads(done.stdout), strict=True):
        match = re.search(perlre.Expression(pattern).python().encode("latin-1"), text.encode("latin-1"))
        groups = [None if group is None else group.decode("latin-1") for group in match.groups()] if match else None
        assert (match and [match.start(), match.end(), groups]) == theirs, (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [r"a\Kb", r"\R", r"\X", r"\pL", r"\p{L}", r"\N", r"(?|a|b)", r"(?R)", r"(?1)", r"(?&x)", r"(*FAIL)", r"(?{1})",
     r"(??{1})", r"(?x) a", r"a(?i)b", r"a{b", r"{", r"a**", r"+a", r"(", r")", r"[a", r"[b-a]", "a\\", r"\101",
     r"\1(a)",
     r"\k<x>", r"(?<x>a)(?<x>b)", r"[[.a.]]", r"[[:foo:]]", r"\Qa\E", r"\cA", r"^*", r"\b{wb}", r"(?<=a+)b"],
)  # fmt: skip
def test_what_python_cannot_say_is_refused(pattern):
    with pytest.raises(perlre.RefusedError):
        perlre.Expression(pattern)


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"(a*)*b", r"(a|a)*b", r"(a|ab|b)*c", r"(a?a?)*b", r"([a-z]+,?)*x", r"(\w+\s*)+:", r"(.*,){11}P",
     r"((a{1,5})b?)+c", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(?:(?:x+x+)+y)*", r"(?i)(a|A)*b", r"(\s|\t)*;"],
)  # fmt: skip
def test_what_explodes_is_refused(pattern):
    with pytest.raises(perlre.RefusedError, match="two ways|refers to a group"):
        perlre.Expression(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\d+\.)+\d+",
        r'(?:[^"\\]|\\.)*',
        r"(?:,[^,]*)*",
        r"(\w+\s)+:",
        r"(?:a\d{1,3}\.){6}",
        r"(ab|cd)*",
        r"(?:/[\w.-]+)+",
    ],
)
def test_what_repeats_without_ambiguity_is_let_through_and_is_quick(pattern):
    compiled = re.compile(perlre.Expression(pattern).python() + "\x01")
    begun = time.process_time()
    for text in ("1." * 2000, "\\x" * 2000, ",ab" * 1300, "word " * 800, "a1." * 1300, "abcd" * 1000, "/a-b" * 1000):
        assert not compiled.search(text)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(("pattern", "text"), itertools.product(PATTERNS, TEXTS))
def test_a_line_that_matches_holds_what_the_pattern_demands(pattern, text):
    expression = perlre.Expression(pattern)
    line = text.encode("latin-1")
    if re.search(expression.python().encode("latin-1"), line):
        demands = [ruleindex.demand(way) for way in ruleindex.ways(expression.root)]
        words = set(ruleindex.words(line))
        assert any(demand.words <= words and all(text in line for text in demand.texts) for demand in demands)


def test_words_are_found_where_they_are_whole():
    def words(pattern):
        return [demand.words for demand in map(ruleindex.demand, ruleindex.ways(perlre.Expression(pattern).root))]

    assert words(r'"type":"shop\.release","sev"') == [{b"type", b"shop", b"release", b"sev"}]
    assert words(r"^sshd\[\d+\]: Failed .+ for x") == [{b"sshd", b"Failed", b"for"}]
    assert words(r" (a|b[cd]) ") == [{b"a"}, set()]
    assert words(r"foo") == words(r"\w foo\w") == words(r" fo+ ") == [set()]

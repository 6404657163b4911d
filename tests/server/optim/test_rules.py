"""Rules for names: how they are written, and which parameters they are for."""

import pytest

from optd.params.groups import plain_option
from optd_server.optim.rules import LONGEST, Matches, parse

FORM = 'a list of rules such as [{"match": "*.bias", "weight_decay": 0}]'


def test_what_people_write_in_python_is_read_back() -> None:
    rules = parse(plain_option([{"match": "*.bias", "betas": (0.9, 0.5), "amsgrad": True}, {"match": "a", "lr": 1}]))
    assert [rule.match for rule in rules] == ["*.bias", "a"]
    assert dict(rules[0].options) == {"betas": (0.9, 0.5), "amsgrad": True}


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.bias", "fc.bias", True),
        ("*.bias", "bias", False),
        ("*bias", "bias", True),
        ("*.Bias", "fc.bias", False),
        ("layers.?.weight", "layers.3.weight", True),
        ("layers.?.weight", "layers.13.weight", False),
        ("layers.[0-2].*", "layers.2.weight", True),
        ("fc", "fc.bias", False),
    ],
)
def test_a_pattern_is_for_whole_names(pattern: str, name: str, matches: bool) -> None:
    (rule,) = parse(plain_option([{"match": pattern, "lr": 1}]))
    assert rule.matches(name) is matches


def test_all_rules_that_match_count_and_the_later_one_wins() -> None:
    rules = '[{"match": "*", "lr": 1, "eps": 2}, {"match": "a*", "lr": 3}, {"match": "b", "lr": 4}]'
    matches = Matches(rules, ["ab", "b", "ac", "c"])
    assert matches.overrides == [{"lr": 3, "eps": 2}, {"lr": 4, "eps": 2}, {"lr": 1, "eps": 2}]
    assert matches.which == [0, 1, 0, 2]
    assert matches.unmatched == set()


def test_what_no_rule_is_for_has_no_options_and_a_rule_that_is_for_nothing_is_told() -> None:
    matches = Matches('[{"match": "a", "lr": 1}, {"match": "b", "lr": 2}]', ["c", "b"])
    assert [matches.overrides[place] for place in matches.which] == [{}, {"lr": 2}]
    assert (matches.matched, matches.unmatched) == ({"b"}, {"a"})
    assert Matches('[{"match": "a", "lr": 1}]', []).unmatched == {"a"}


BAD = {
    "": FORM,
    "lr=0": FORM,
    "[]": FORM,
    "{}": FORM,
    "[1]": FORM,
    "[" * 5000: FORM,
    '[{"lr": 0}]': 'rules that each have a pattern, as {"match": "*.bias"}',
    '[{"match": 3, "lr": 0}]': 'rules that each have a pattern, as {"match": "*.bias"}',
    '[{"match": "a"}]': "rules that each set an option, unlike the one for 'a'",
    '[{"match": "a", "lr": {}}]': "rules with plain values, unlike lr of the one for 'a'",
    '[{"match": "a", "lr": [[1]]}]': "rules with plain values, unlike lr of the one for 'a'",
    '"' + "x" * LONGEST: f"rules of at most {LONGEST} characters",
    "[" + ", ".join(['{"match": "a", "lr": 0}'] * 101) + "]": "at most 100 rules",
}


@pytest.mark.parametrize(("written", "says"), BAD.items(), ids=[text[:20] for text in BAD])
def test_what_are_no_rules_is_told_what_it_must_be(written: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(written)
    assert str(caught.value) == says

"""Parameters written as text."""

import pytest

from metric_learning.common.parameters import parse_options

TYPES = {"k": int, "alpha": float}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("k=7", {"k": 7}),
        (" alpha = 2 , k=1,", {"alpha": 2.0, "k": 1}),
        ("alpha=1e-3", {"alpha": 0.001}),
    ],
)
def test_parameters_have_their_type(text, expected):
    found = parse_options(text, TYPES, "qe")
    assert found == expected
    assert all(type(value) is TYPES[name] for name, value in found.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kk=1", ["qe has no parameter 'kk'", "k, alpha"]),
        ("10,3", ["no parameter '10'"]),
        ("k=1,k=2", ["k is given twice"]),
        ("k=1.5", ["k to be an integer, found '1.5'"]),
        ("alpha", ["alpha to be a number, found ''"]),
        ("alpha=nan", ["found 'nan'"]),
        ("alpha=inf", ["found 'inf'"]),
    ],
)
def test_wrong_parameters_are_errors(text, words):
    with pytest.raises(ValueError) as error:
        parse_options(text, TYPES, "qe")
    assert all(word in str(error.value) for word in words), error.value


def test_a_method_without_parameters_says_so():
    with pytest.raises(ValueError, match="its parameters are none"):
        parse_options("k=1", {}, "exact")

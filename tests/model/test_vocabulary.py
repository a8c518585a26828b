from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict

import pytest

from gpucheck.model.record import Outcome, Record, Violation
from gpucheck.model.vocabulary import ViolationKind

OTHER = "of a version to come"


@pytest.mark.parametrize("word", [ViolationKind.GUARD, ViolationKind(OTHER)])
def test_a_word_is_written_and_shown_as_the_plain_string_that_it_is(word: ViolationKind) -> None:
    assert json.loads(json.dumps({"kind": word})) == {"kind": word.value}
    assert f"{word}: {word:>30}".split(": ") == [word.value, f"{word.value:>30}"] and str(word) == word.value
    assert {word.value: 1}[word] == 1 and word == word.value


@pytest.mark.parametrize("word", [ViolationKind.PASSES_DIFFER, ViolationKind(OTHER)])
def test_a_word_survives_being_copied_or_sent(word: ViolationKind) -> None:
    for same in (copy.deepcopy(word), pickle.loads(pickle.dumps(word)), *asdict(Violation(word, "")).values()):
        assert same in (word, "")
    assert type(pickle.loads(pickle.dumps(word))) is ViolationKind


def test_a_known_word_is_its_member_and_an_unknown_one_stays_as_it_is() -> None:
    assert ViolationKind("guard") is ViolationKind.GUARD and ViolationKind.GUARD.known
    assert ViolationKind(OTHER) == OTHER and not ViolationKind(OTHER).known
    assert OTHER not in [word.value for word in ViolationKind], "what was read once does not become known"
    with pytest.raises(ValueError, match="7"):
        ViolationKind(7)


def test_a_record_line_of_another_version_keeps_the_kinds_it_names() -> None:
    record = Record(0, "a/b", 0, Outcome.VIOLATION, violations=[Violation(ViolationKind.ORDER, "x")])
    line = json.loads(json.dumps(record.to_json()))
    assert line["violations"] == [{"kind": "order", "detail": "x"}]
    line["violations"].append({"kind": OTHER, "detail": "y"})
    read = Record.from_json(line)
    assert [each.kind for each in read.violations] == [ViolationKind.ORDER, OTHER]
    assert json.loads(json.dumps(read.to_json())) == line

"""What docs/theory.md calls checked has a test, and tests/PROOFS.md lists them all."""

from __future__ import annotations

import re

from proofs import CHECKED, PAGE, checked, page, proofs, sections


def test_every_checked_claim_of_the_theory_has_a_test():
    assert checked() - {(proof.section, proof.claim) for proof in proofs()} == set()


def test_every_checked_has_a_name():
    for number, (_, text) in sections().items():
        assert len(re.findall("checked", text, re.IGNORECASE)) == len(CHECKED.findall(text)), number


def test_every_proof_is_of_a_section_and_names_its_oracle():
    for proof in proofs():
        assert proof.section in sections(), proof
        assert proof.oracle, proof
        assert "|" not in proof.claim + proof.oracle, proof


def test_the_page_of_proofs_is_that_of_the_marks():
    assert PAGE.read_text("utf-8") == page(), "stale: run `python tests/proofs.py`"

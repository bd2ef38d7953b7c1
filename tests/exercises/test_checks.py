"""The exercises' checks accept right solutions, the project's own among them, and reject what a reader might get wrong.

Each solution is source text, so that a wrong one is a right one with a single thing changed.
"""

import string
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exercises import checks
from finetune.tasks.qa import metrics

ROOT = Path(__file__).parents[2]

SPAN_SAMPLER = """
def solution(word_sizes, budget, length, start):
    spans, left = [], budget
    while left > 0:
        attempt = 0
        while True:
            wanted = length(len(spans)) - attempt // 16
            if not spans:
                wanted = max(wanted, 1)
            if wanted <= 0:
                return spans
            begin = end = start(len(spans), attempt)
            attempt += 1
            spent = 0
            while end < begin + wanted and end < len(word_sizes):
                if spent + word_sizes[end] > left and (spans or end > begin):
                    break
                spent += word_sizes[end]
                end += 1
            leaves = end == len(word_sizes) and end < begin + wanted and spent < left
            if leaves or any(begin <= d and c <= end for c, d in spans):
                continue
            if end == begin:
                return spans
            spans.append((begin, end))
            left -= spent
            if end < begin + wanted:
                return spans
            break
    return spans
"""

SBO_FEATURES = """
def solution(head, hidden_TH, targets):
    span_K, offset_K = targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]
    left, right = hidden_TH[targets.left_S][span_K], hidden_TH[targets.right_S][span_K]
    h0 = torch.cat([left, right, head.position.weight[offset_K]], 1)
    W1 = torch.cat([head.left.weight, head.right.weight, head.from_position.weight], 1)
    h1 = head.norm1(F.gelu(h0 @ W1.T + head.from_position.bias))
    return head.norm2(F.gelu(head.dense2(h1)))
"""

OWNED_RANGE = """
def solution(windows):
    ranges, first = [], 0
    for (_, last), (following, _) in zip(windows, windows[1:]):
        border = (last + following) // 2
        ranges.append((first, border))
        first = border + 1
    return [*ranges, (first, windows[-1][1])]
"""

TOKEN_F1 = """
def words(text):
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    text = re.sub(r"\\b(a|an|the)\\b", " ", text)
    return text.split()

def solution(prediction, gold):
    given, expected = words(prediction), words(gold)
    shared = sum((Counter(given) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
"""

ONLINE_SOFTMAX = """
def solution(q, blocks):
    m, total, acc = -np.inf, 0.0, 0.0
    for keys, values in blocks:
        s = keys @ q / np.sqrt(len(q))
        new = max(m, s.max())
        p = np.exp(s - new)
        total = total * np.exp(m - new) + p.sum()
        acc = acc * np.exp(m - new) + p @ values
        m = new
    return acc / total, m + np.log(total)
"""

#: exercise → check, a right solution, and what a reader might write in place of a part of it
CASES = {
    "span_sampler": (
        checks.check_span_sampler,
        SPAN_SAMPLER,
        {
            "touching spans are allowed": ("begin <= d and c <= end", "begin < d and c < end"),
            "one side may touch": ("begin <= d and c <= end", "begin < d and c <= end"),
            "the length is never given up": ("- attempt // 16", "- 0 * attempt"),
            "patience is shorter": ("attempt // 16", "attempt // 4"),
            "a span is cut at the end of the text": ("leaves or any", "any"),
            "a start is never redrawn": ("continue\n", "return spans\n"),
            "the last span is not shortened but left out": ("if end == begin:", "if end < begin + wanted:"),
            "goes on after a shortened span": (
                "            if end < begin + wanted:\n                return spans\n            break",
                "            break",
            ),
            "the first word must be paid": (" and (spans or end > begin)", ""),
            "the budget counts words": ("spent += word_sizes[end]", "spent += 1"),
            "every try draws its length anew": (
                "length(len(spans)) -",
                "length(min(len(spans) + attempt, len(word_sizes))) -",
            ),
            "only one span": ("            left -= spent\n", "            return spans\n"),
            "the inclusive end": ("spans.append((begin, end))", "spans.append((begin, end - 1))"),
        },
    ),
    "sbo_features": (
        checks.check_sbo_features,
        SBO_FEATURES,
        {
            "left and right exchanged": ("torch.cat([left, right,", "torch.cat([right, left,"),
            "weights exchanged": ("head.left.weight, head.right.weight", "head.right.weight, head.left.weight"),
            "places from 1": (
                "weight[offset_K]",
                "weight[(offset_K + 1).clamp(max=len(head.position.weight) - 1)]",
            ),
            "all masked tokens": (
                "targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]",
                "targets.span_M, targets.offset_M.clamp(max=len(head.position.weight) - 1)",
            ),
            "the tokens of the span": (
                "hidden_TH[targets.left_S][span_K]",
                "hidden_TH[targets.positions_M[targets.sbo_K]]",
            ),
            "one more to the left": ("[targets.left_S]", "[targets.left_S - 1]"),
            "no bias": (" + head.from_position.bias", ""),
            "no first GELU": (
                "norm1(F.gelu(h0 @ W1.T + head.from_position.bias))",
                "norm1(h0 @ W1.T + head.from_position.bias)",
            ),
            "LayerNorm first": ("head.norm2(F.gelu(head.dense2(h1)))", "F.gelu(head.norm2(head.dense2(h1)))"),
            "one layer": ("head.norm2(F.gelu(head.dense2(h1)))", "h1"),
            "W1 not transposed": ("W1.T", "W1[:, : len(W1)]"),
        },
    ),
    "owned_range": (
        checks.check_owned_range,
        OWNED_RANGE,
        {
            "ties to the later window": ("(last + following) // 2", "(last + following - 1) // 2"),
            "rounded up": ("(last + following) // 2", "(last + following + 1) // 2"),
            "everything to the earlier window": ("(last + following) // 2", "last"),
            "everything to the later window": ("(last + following) // 2", "following - 1"),
            "the border belongs to both": ("first = border + 1", "first = border"),
            "a gap": ("first = border + 1", "first = border + 2"),
            "the last window is forgotten": ("[*ranges, (first, windows[-1][1])]", "ranges"),
            "exclusive ends": ("(first, border)", "(first, border + 1)"),
            "the whole windows": ("return [*ranges, (first, windows[-1][1])]", "return windows"),
        },
    ),
    "token_f1": (
        checks.check_token_f1,
        TOKEN_F1,
        {
            "sets": ("sum((Counter(given) & Counter(expected)).values())", "len(set(given) & set(expected))"),
            "counts every occurrence of the prediction": (
                "sum((Counter(given) & Counter(expected)).values())",
                "sum(word in expected for word in given)",
            ),
            "case matters": ("text = text.lower()", ""),
            "articles count": ('text = re.sub(r"\\b(a|an|the)\\b", " ", text)', ""),
            "articles inside words": ("\\b(a|an|the)\\b", "(a|an|the)"),
            "punctuation counts": ("if c not in string.punctuation", ""),
            "punctuation divides": (
                '"".join(c for c in text if c not in string.punctuation)',
                '"".join(" " if c in string.punctuation else c for c in text)',
            ),
            "all punctuation of Unicode": ("c not in string.punctuation", "c not in string.punctuation + '—'"),
            "articles before punctuation": (
                '    text = "".join(c for c in text if c not in string.punctuation)\n    text = re.sub(r"\\b(a|an|the)\\b", " ", text)',
                '    text = re.sub(r"\\b(a|an|the)\\b", " ", text)\n    text = "".join(c for c in text if c not in string.punctuation)',
            ),
            "only single spaces": ("text.split()", 'text.split(" ")'),
            "precision": ("2 * precision * recall / (precision + recall)", "precision"),
            "recall": ("2 * precision * recall / (precision + recall)", "recall"),
            "the arithmetic mean": ("2 * precision * recall / (precision + recall)", "(precision + recall) / 2"),
            "two empty answers are alike": ("return 0.0", "return float(given == expected)"),
        },
    ),
    "online_softmax": (
        checks.check_online_softmax,
        ONLINE_SOFTMAX,
        {
            "no maximum": ("new = max(m, s.max())", "new = 0.0"),
            "the maximum of the block": ("new = max(m, s.max())", "new = s.max()"),
            "the maximum begins at 0": ("m, total, acc = -np.inf", "m, total, acc = 0.0"),
            "the sum is not corrected": ("total = total * np.exp(m - new)", "total = total"),
            "the output is not corrected": ("acc = acc * np.exp(m - new)", "acc = acc"),
            "corrected the wrong way": ("total = total * np.exp(m - new)", "total = total * np.exp(new - m)"),
            "the maximum is not kept": ("        m = new\n", ""),
            "no scale": (" / np.sqrt(len(q))", ""),
            "scaled by D": ("np.sqrt(len(q))", "len(q)"),
            "not normalised": ("acc / total", "acc"),
            "each block normalised": ("p = np.exp(s - new)", "p = np.exp(s - new) / np.exp(s - new).sum()"),
            "log-sum-exp without the maximum": ("m + np.log(total)", "np.log(total)"),
            "log-sum-exp in base 2": ("m + np.log(total)", "(m + np.log(total)) / np.log(2)"),
            "only the last block": ("acc = acc * np.exp(m - new) + p @ values", "acc = p @ values"),
        },
    ),
}

#: the project's own functions, as solutions
PROJECT = {
    "span_sampler": lambda sizes, budget, length, start: checks.project_spans(sizes, budget, length.__self__),
    "sbo_features": checks.project_features,
    "owned_range": checks.project_ranges,
    "token_f1": lambda prediction, gold: metrics.token_f1(prediction, gold, version_2=False),
    "online_softmax": checks.project_attention,
}


def made_of(source):
    names = {"torch": torch, "F": F, "np": np, "string": string, "Counter": Counter, "re": __import__("re")}
    exec(source, names)
    return names["solution"]


@pytest.mark.parametrize("name", CASES)
def test_the_projects_own_function_is_accepted(name):
    check, _, _ = CASES[name]
    check(PROJECT[name])


@pytest.mark.parametrize("name", CASES)
def test_a_right_solution_is_accepted(name):
    check, source, _ = CASES[name]
    check(made_of(source))


@pytest.mark.parametrize("name,mistake", [(name, mistake) for name, case in CASES.items() for mistake in case[2]])
def test_a_wrong_solution_is_rejected(name, mistake):
    """By a sentence where it gives something wrong; some raise an error of their own, which the reader then sees."""
    check, source, mistakes = CASES[name]
    old, new = mistakes[mistake]
    assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
    with pytest.raises((checks.Wrong, IndexError, RuntimeError, ZeroDivisionError)):
        check(made_of(source.replace(old, new)))


def test_what_a_reader_is_told():
    def unwritten(prediction, gold):
        raise NotImplementedError

    def unwell(prediction, gold):
        raise ZeroDivisionError

    check = checks.check_token_f1
    assert checks.verdict(check, unwritten, "exercises/x.py") == "not written yet: unwritten in exercises/x.py"
    assert checks.verdict(check, PROJECT["token_f1"], "exercises/x.py") is None
    wrong = checks.verdict(check, lambda prediction, gold: 0.5, "exercises/x.py")
    assert wrong == "<lambda> in exercises/x.py: ('cat', 'cat'): expected 1.0000, got 0.5000"
    with pytest.raises(ZeroDivisionError):
        checks.verdict(check, unwell, "exercises/x.py")


def test_pytest_tells_one_line_an_exercise():
    """Whatever of them is written: every exercise has one line of the summary."""
    command = [sys.executable, "-m", "pytest", "exercises", "-p", "no:cacheprovider", "-rA", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for name in CASES:
        lines = [line for line in done.stdout.splitlines() if f"::test_exercise[{name}]" in line]
        assert len(lines) == 1 and lines[0].startswith(("PASSED", "FAILED")), done.stdout
    assert "Traceback" not in done.stdout


def test_make_test_leaves_the_exercises_alone():
    """They are for the reader to write: unwritten ones fail."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]
    assert "exercises" not in (ROOT / "Makefile").read_text("utf-8")


def test_what_the_readme_shows_is_what_a_reader_sees():
    _, source, mistakes = CASES["token_f1"]
    wrong = made_of(source.replace(*mistakes["counts every occurrence of the prediction"]))
    told = checks.verdict(checks.check_token_f1, wrong, "exercises/token_f1.py").replace("solution", "token_f1")
    assert f"    {told}\n" in (ROOT / "exercises/README.md").read_text("utf-8")

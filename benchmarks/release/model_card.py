"""The README.md of a bundled model, from what was measured: no figure in it is written by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.release.provenance import MADE_HEADING

HEADER = """---
license: cc-by-sa-4.0
language: en
library_name: spanbert
pipeline_tag: {task}
---
# {title}

{what}

"""

ENCODER_WHAT = """A SpanBERT encoder (Joshi et al., TACL 2020) with its two heads, masked language model and span-boundary objective, \
trained from scratch by this project: {shape}. Small enough for a laptop's processor; meant for \
fine-tuning, for filling spans and for looking at how the objectives work."""

QA_WHAT = """Extractive question answering: given a question and a text, it points at the answer in the text. The encoder beside it \
(`encoder/`), fine-tuned: {shape}. {null}"""

READER_WHAT = """Extractive question answering: given a question and a text, it points at the answer in the text: {shape}. {null}

**Whose work it is.** The question-answering stage, its data and its measurements are this project's. The encoder is not: it is all-MiniLM-L6-v2 by the Sentence Transformers team (Apache-2.0), a MiniLM (Wang et al. 2020, by Microsoft) with six of its layers, distilled from BERT and tuned on a billion pairs of sentences. For a model that this project trained from nothing, see `scratch/`."""

NULL_NEVER = "It always answers, also where the text holds no answer."
NULL_MAY = "It was trained on unanswerable questions too and may say that the text holds no answer."
CHOSEN_ON_DEV = "How sure it must be to decline was chosen on {dev}, so its score there is a little too kind."
CHOSEN_APART = (
    "How sure it must be to decline was chosen on {held_out}, questions on articles that it was not trained on."
)
FORCED = "On a file in which every question has an answer it is made to give one, as such files are scored."

ENCODER_USE = """    spanbert fill "The [SPAN:2] of France is Paris."          # --head mlm, sbo or both
    spanbert masks "Any sentence shows how spans are masked."
    spanbert finetune qa --init bundled --train train.json --output qa"""

QA_USE = """    spanbert ask --context text.txt "When was the canal opened?"
    spanbert evaluate qa dev-v1.1.json"""

DATA_WIKIPEDIA = """* Pretraining: {inputs}, articles of the English Wikipedia as of 2015, by Wikipedia's contributors \
(https://en.wikipedia.org), CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)."""

DATA_SQUAD = """* Fine-tuning: {train}, from SQuAD (Rajpurkar et al. 2016, 2018, https://rajpurkar.github.io/SQuAD-explorer/), \
CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)."""

DATA_ENCODER = """* Encoder: all-MiniLM-L6-v2, Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0). The list of its training data that comes with it names, beside discussions and web searches, questions of SQuAD's *training* set with their paragraphs, of Natural Questions, TriviaQA and SearchQA, and PAQ, questions that a program made from Wikipedia: paragraphs of SQuAD's development set, which are from there too, may be among them. Their questions and answers are not. BERT itself read all of Wikipedia and BookCorpus."""

DATA_QED = """* Fine-tuning: questions of QED (Lamm et al. 2021), from Natural Questions (Kwiatkowski et al. 2019), over Wikipedia paragraphs, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)."""

LICENCE = """The weights are offered under CC BY-SA 4.0, as the texts that they were made from ask of what is made from them; the program \
around them is under Apache-2.0. Changed against the sources: the texts were cut into subword tokens and turned into weights."""

LIMITS = """Small, English, and from an encyclopedia: it knows little about the world and nothing recent, and it repeats whatever \
slant its sources have. Nobody should rely on its answers unread."""

LIMITS_MINI = LIMITS + " It is cased, has read the encyclopedia of one year, and its probabilities are not calibrated."


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; floats get two digits, pipes and line ends in texts lose their meaning."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *(part for part in parts if part)]) + "\n\n"


def encoder_card(facts: dict[str, Any]) -> str:
    """From the facts that ``benchmarks.release.ship`` gathers for an encoder."""
    rows = [
        (masks, name, scores[f"unigram_{key}_loss"], scores[f"{key}_loss"], f"{100 * scores[f'{key}_accuracy']:.1f} %")
        for masks, scores in facts["scores"].items()
        for name, key in (("MLM, all masked tokens", "mlm"), ("SBO, from a span's two neighbours", "sbo"))
    ]
    names = {"mlm": "MLM", "sbo": "SBO", "both": "both"}
    fills = [(f"`{text}`", names[head], " / ".join(found)) for text, head, found in facts["fills"]]
    return (
        HEADER.format(task="fill-mask", title="SpanBERT mini", what=ENCODER_WHAT.format(**facts))
        + section("Use", ENCODER_USE, TRANSFORMERS.format(name="BertForMaskedLM"))
        + section(
            "Scores",
            f"On {facts['sequences']:,} held-out blocks of {facts['data']} (never trained on, masks fixed by seed "
            f"{facts['seed']}), these bf16 weights, {facts['precision']} arithmetic, one training run. Losses in nats; "
            "the baseline predicts every token by its frequency in the corpus.",
            table(("masks", "objective", "unigram baseline", "loss", "right"), rows),
        )
        + section("Examples", "The three best fills, whatever they are:", table(("text", "head", "fills"), fills))
        + _making(facts, [DATA_WIKIPEDIA.format(**facts)], LIMITS_MINI)
    )


def scratch_card(facts: dict[str, Any]) -> str:
    """Of a question-answering model that began with the bundled encoder."""
    data = [DATA_WIKIPEDIA.format(**facts), DATA_SQUAD.format(**facts)]
    return _qa_card(facts, "SpanBERT mini, question answering", QA_WHAT, data, LIMITS_MINI)


def reader_card(facts: dict[str, Any]) -> str:
    """Of a question-answering model whose encoder was trained elsewhere."""
    data = [DATA_ENCODER, DATA_SQUAD.format(**facts), DATA_QED]
    return _qa_card(facts, "Reader: MiniLM, question answering", READER_WHAT, data, LIMITS)


def _qa_card(facts: dict[str, Any], title: str, what: str, data: list[str], limits: str) -> str:
    """From the facts that ``benchmarks.release.ship`` gathers for a question-answering model."""
    rows = [_score_row(name, metrics) for name, metrics in facts["scores"].items()]
    if "fp32" in facts:
        rows.insert(1, _score_row(f"{facts['dev']}, before rounding to bf16", facts["fp32"]))
    samples = [(w["question"], w["answered"] or "(none)", w["expected"] or "(none)", w["f1"]) for w in facts["wrong"]]
    return (
        HEADER.format(
            task="question-answering",
            title=title,
            what=what.format(null=NULL_MAY if facts["null_allowed"] else NULL_NEVER, **facts),
        )
        + section("Use", QA_USE, TRANSFORMERS.format(name="BertForQuestionAnswering"))
        + section(
            "Scores",
            f"Official exact match and F1 in percent, these bf16 weights, {facts['precision']} arithmetic, one training run "
            f"(seed {facts['seed']}).",
            table(("questions of", "EM", "F1", "questions", "answerable: F1", "unanswerable: F1"), rows),
            " ".join(_declining(facts)),
            _contamination(facts.get("contamination")),
        )
        + section(
            "What it gets wrong",
            f"By asking word, on {facts['dev']}:",
            table(("asks", "questions", "EM", "F1"), facts["by_word"]),
            "A random sample (seed 0) of its answers there that match no gold answer exactly:",
            table(("question", "its answer", "a gold answer", "F1"), samples),
        )
        + section(
            "Examples",
            "Five questions about `sample/text.txt`, a text written for this project:",
            table(("question", "its answer", "a reader's", "probability"), facts["examples"]),
        )
        + section(
            "Speed",
            f"From a cold start, `spanbert ask` with one question on one text takes {facts['cold_start']['ask']:.2f} s, of which "
            f"loading the model {facts['cold_start']['load']:.2f} s (best of {facts['cold_start']['runs']} processes each, load "
            f"average {facts['cold_start']['load_average']:.1f}; {facts['machine']}).",
        )
        + _making(facts, data, limits)
    )


def _declining(facts: dict[str, Any]) -> list[str]:
    if not facts["null_allowed"]:
        return []
    return [FORCED, (CHOSEN_APART if facts["held_out"] else CHOSEN_ON_DEV).format(**facts)]


TRANSFORMERS = "The folder is in the Hugging Face layout: `transformers.{name}.from_pretrained` reads it as it is."


def _score_row(name: str, metrics: dict[str, Any]) -> tuple[Any, ...]:
    parts = [metrics.get(f"{part}_f1", "–") for part in ("HasAns", "NoAns")]
    return (name, metrics["exact"], metrics["f1"], int(metrics["total"]), *parts)


def _contamination(found: dict[str, Any] | None) -> str:
    """What the model may have seen of its examination."""
    if found is None:
        return ""
    lines = []
    if "corpus" in found:
        corpus = found["corpus"]
        lines.append(
            f"Of the {corpus['paragraphs']:,} paragraphs of {found['file']}, {corpus['paragraphs_seen']:,} have at least "
            f"{found['share']:.0%} of their {found['words']}-word windows in the pretraining corpus, which is Wikipedia as they "
            f"are ({corpus['paragraphs_untouched']:,} have none). The questions were not there. Apart:"
        )
        rows = [(f"on {n} paragraphs", p["exact"], p["f1"], p["total"]) for n, p in found["scores"].items()]
        lines.append(table(("questions", "EM", "F1", "number"), rows))
    lines += [
        f"{part['file']} holds {part['paragraphs_whole']} of these paragraphs whole, {part['paragraphs_seen']} by at least "
        f"{found['share']:.0%}, and {len(part['questions_repeated'])} questions word for word (about other texts)."
        for part in found["train"]
    ]
    return "\n\n".join(lines)


def _making(facts: dict[str, Any], data: list[str], limits: str) -> str:
    costs = [(c["run"], c["steps"], c["tokens"], f"{c['hours']:.2f}") for c in facts["costs"]]
    commands = "\n\n".join("    " + line for line in facts["commands"])
    return (
        section(
            MADE_HEADING.removeprefix("## "),
            facts["note"],
            commands,
            f"The tokenizer's fingerprint is `{facts['fingerprint'][:16]}`. Optimizer steps took, validation and saving not "
            "counted:",
            table(("run", "steps", "tokens", "hours"), costs),
            f"Measured on {facts['machine']}; code at commit {facts['commit']}, {facts['date']}.",
        )
        + section("Limits", limits)
        + section("Data, licence, attribution", "\n".join(data), LICENCE)
    ).rstrip() + "\n"

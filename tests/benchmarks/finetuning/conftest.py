"""Sample questions, a tokenizer and a tiny model, as the fine-tuning tests have them."""

from tests.qa_samples import data, make_model, question_set, tokenizer

__all__ = ["data", "make_model", "question_set", "tokenizer"]

"""The fine-tuning tests' fixtures are those of the sample questions."""

from tests.qa_samples import data, make_model, question_set, tokenizer, tokenizer_folder

__all__ = ["data", "make_model", "question_set", "tokenizer", "tokenizer_folder"]

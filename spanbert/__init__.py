"""SpanBERT (Joshi et al., TACL 2020) from scratch: encoder, span masking, span-boundary objective, question answering."""

__version__ = "0.1.0"

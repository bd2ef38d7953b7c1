"""`spanbert explore`: how SpanBERT splits, masks, attends, predicts and answers, to look at in the browser."""

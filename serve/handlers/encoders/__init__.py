"""Models that read a text in one pass: classifiers, taggers, answerers, embedders. One pass serves all callers."""

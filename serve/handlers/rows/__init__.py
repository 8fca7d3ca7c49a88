"""Rows of features out of a body: CSV, libsvm, JSON, npy, RecordIO, Parquet; a matrix or a 4xx, in bounded memory."""

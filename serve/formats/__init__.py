"""Body formats as arrays: CSV, JSON, libsvm, RecordIO, npy."""

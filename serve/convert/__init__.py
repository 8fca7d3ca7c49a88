"""`serve convert`: a pickled model becomes a file that is only data, read in a sandbox."""

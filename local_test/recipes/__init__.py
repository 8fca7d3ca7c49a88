"""One module for each kind of sample model; `local_test.make_models` calls them."""

"""HTTP as every process here uses it: parsing and writing messages, media types, addresses of models."""

"""Models on the way to S3: checked, packed, uploaded, listed, removed."""

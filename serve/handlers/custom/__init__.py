"""Models with their own code, which is called as AWS's toolkits call it."""

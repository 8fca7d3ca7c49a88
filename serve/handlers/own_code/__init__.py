"""A model's own code: imported, called as AWS's toolkits call it, its answers as replies."""

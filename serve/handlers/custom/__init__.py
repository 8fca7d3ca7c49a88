"""A model's own code: imported, called as AWS's toolkits call it, its results written as replies."""

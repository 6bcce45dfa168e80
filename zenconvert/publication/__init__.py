"""Publication: from a recipe to a release that can be checked and put on a shelf."""

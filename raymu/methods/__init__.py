"""One file a method. A new file is found by its name; there is nothing to register."""

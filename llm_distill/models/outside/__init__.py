"""Files that other interpreters run. They import nothing but the standard library, and nothing of this package."""

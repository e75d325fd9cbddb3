"""Compare predictions from papers, and claims from the project's starting text, with measurements."""

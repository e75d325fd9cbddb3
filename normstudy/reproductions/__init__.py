"""Compare predictions of papers, and the claims in docs/claims.md, with measurements."""

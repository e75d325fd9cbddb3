"""Compare predictions from papers, and the claims in docs/claims.md, with measurements."""

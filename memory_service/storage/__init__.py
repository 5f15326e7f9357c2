"""What is kept: tables, queries, one commit. The only package that speaks SQL."""

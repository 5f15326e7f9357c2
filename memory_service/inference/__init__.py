"""Running the base model: fetching and loading it, encoding chunks, generating answers."""

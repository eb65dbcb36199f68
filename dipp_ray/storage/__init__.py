"""Writing that survives an interruption: whole files and folders, locks, hashes. Free of Ray and torch."""

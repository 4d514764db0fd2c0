"""The bottom of the house: errors, specs, batches, saved state and the ledger. Imports no other part."""

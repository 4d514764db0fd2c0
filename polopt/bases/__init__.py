"""What methods are made from: the two verbs, stages, and what families share. No method lives here."""

"""What changed and why: facts become lines here, and lines go to the journal."""

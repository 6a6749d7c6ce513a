"""All figures of docs/robustness.md by one command, `sudo scripts/robustness`, and the page that is made of them."""

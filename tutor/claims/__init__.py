"""Claims, one file per method: `CLAIMS` is a tuple of `tutor.claim.Claim`. The catalog finds them by looking."""

"""The differential test: `scenario` is what is done, `play` and `ends` do it, `outcome` is what is compared."""

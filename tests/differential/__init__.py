"""The differential test: `scenario` is what is done, `play` does it on a loop, `outcome` is what is compared."""

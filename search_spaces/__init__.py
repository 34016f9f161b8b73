"""Search spaces: parameters, conditions and named spaces as pure data."""

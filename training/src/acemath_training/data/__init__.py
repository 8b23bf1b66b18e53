"""Problems, splits, rows of token ids, and candidate pools."""

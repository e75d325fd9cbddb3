"""Make one offline HTML page of one or more studies: comparisons, charts, every run, and the methods."""

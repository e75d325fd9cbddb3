"""Make one offline HTML page of a study, or of several: its answer, its charts, every run, and the methods."""

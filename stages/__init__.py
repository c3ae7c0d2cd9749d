"""The experiments of the thesis, one package a stage and one file a table or figure."""

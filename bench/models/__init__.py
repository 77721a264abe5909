"""How good models are: public data sets, and the jobs that are measured on them."""

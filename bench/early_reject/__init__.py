"""Early rejection on recorded candidates: what scores of beginnings tell, and what stopping by them saves."""

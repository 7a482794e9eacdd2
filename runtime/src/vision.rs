//! From a picture to the rows that enter the decoder.

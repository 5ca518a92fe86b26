namespace ssl_fast::SSL_FAST_ISA {}

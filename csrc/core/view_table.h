// The table of random parameters [N, V, kColumns] fp32: ssl_fast/data/views.py says what the columns hold.
#pragma once

namespace ssl_fast {

// A policy's columns follow; the kernels make no views that have one.
enum Column { kTop, kLeft, kHeight, kWidth, kFlip, kJitter, kFactors, kOrder = 10, kGrayscale = 14, kBlur, kSolarize };
constexpr int kColumns = 21;

}  // namespace ssl_fast

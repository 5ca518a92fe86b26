// The table of random parameters [N, V, kColumns] fp32: ssl_fast/data/views.py says what the columns hold.
#pragma once

namespace ssl_fast {

enum Column { kTop, kLeft, kHeight, kWidth, kFlip, kJitter, kFactors, kOrder = 10, kGrayscale = 14, kBlur, kSolarize };
constexpr int kColumns = 17;

}  // namespace ssl_fast

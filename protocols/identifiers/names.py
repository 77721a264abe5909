"""Names of persons in one spelling, to compare records that a key has already joined.

A name is never a key: thousands of people share one, and one person writes it several ways.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from protocols.identifiers.rules import BLANKS

MIDDLE_DOT: Final = "\u00b7"

# After NFKC, which leaves the bullet, the hyphenation point and the katakana dot as they are, and makes the
# full-width stop and the one-dot leader an ASCII stop. GB 18030 name fields use U+00B7.
_DOTS: Final = "\u2022\u2027\u30fb\u2219\u22c5."

# Characters common in surnames and given names, traditional then simplified. Only pairs in which the
# traditional form has one simplified form in names: 乾, 於, 瀋, 薑, 徵, 甯 and 並 are left out.
# This is no converter: a character that is not listed is compared as it is.
_PAIRS: Final = (
    "張张劉刘陳陈楊杨趙赵黃黄吳吴孫孙馬马羅罗鄭郑謝谢許许韓韩馮冯鄧邓葉叶蘇苏蔣蒋盧卢賈贾閻阎鐘钟鍾钟譚谭陸陆"
    "範范韋韦蕭萧鄒邹賀贺賴赖龔龚龍龙萬万錢钱嚴严齊齐顧顾龐庞喬乔藍蓝畢毕聶聂紀纪關关莊庄農农溫温湯汤塗涂駱骆"
    "歐欧陽阳諸诸鮑鲍費费練练連连遲迟時时華华單单倫伦儲储衛卫項项顏颜魯鲁鳳凤閔闵欒栾鄔邬鄺邝酈郦談谈陰阴國国"
    "偉伟麗丽紅红軍军傑杰強强輝辉鵬鹏飛飞濤涛寧宁蘭兰鳴鸣慶庆興兴賢贤義义禮礼學学書书業业東东樂乐愛爱夢梦嬌娇"
    "婭娅嫻娴瑩莹瑤瑶瓊琼環环鈺钰銘铭鋒锋鋼钢鐵铁錦锦銀银鈞钧鴻鸿齡龄靜静順顺領领頌颂頻频願愿風风駿骏騰腾驊骅"
    "驍骁驥骥魚鱼鵑鹃鶴鹤鷺鹭鷹鹰鶯莺鸞鸾實实寶宝將将勝胜勞劳勵励勳勋動动亞亚來来優优億亿儀仪凱凯劍剑創创剛刚"
    "則则協协啟启嘯啸圓圆園园團团聖圣堅坚壯壮壽寿奮奋嬋婵宮宫導导嵐岚嶽岳巒峦嶺岭帥帅師师廣广彥彦從从恆恒悅悦"
    "憲宪懷怀戀恋戰战揚扬擇择攜携晉晋曉晓曄晔暉晖暢畅會会楓枫榮荣樹树橋桥機机權权歡欢歷历歸归澤泽潔洁潤润淵渊"
    "淺浅滿满漢汉漣涟濱滨瀾澜瀟潇灝灏灣湾為为烏乌煒炜煥焕燁烨燦灿營营爾尔獻献瑪玛瑋玮璽玺璣玑瓏珑發发碩硕禎祯"
    "禕祎祿禄穎颖積积競竞筆笔節节篤笃簡简紋纹純纯紗纱絢绚統统絲丝綠绿維维綱纲綺绮綽绰緒绪緣缘績绩織织繼继續续"
    "纓缨羨羡習习聞闻聰聪聲声聯联肅肃臨临與与舉举蒼苍蓀荪蓮莲蔭荫薈荟薔蔷薩萨藝艺蘆芦蘊蕴術术規规親亲覺觉覽览"
    "觀观訓训訊讯設设詠咏詩诗詢询誠诚語语諒谅論论諾诺謀谋謙谦謹谨證证識识譽誉讀读讓让豐丰貝贝貞贞貴贵賓宾賜赐"
    "質质賽赛贊赞躍跃車车軒轩輕轻輪轮轅辕運运達达遠远遙遥選选遷迁邁迈邊边進进鄉乡醫医釗钊鈴铃銳锐錄录錚铮鎮镇"
    "鏡镜鑒鉴鑑鉴長长門门開开閏闰間间閣阁閱阅闊阔階阶際际隨随雙双離离雲云電电靈灵韻韵響响頂顶顯显飄飘餘余馳驰"
    "駒驹麥麦黨党復复喪丧說说詳详"
)
_SIMPLIFIED: Final = str.maketrans(
    dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True)) | dict.fromkeys(_DOTS, MIDDLE_DOT)
)


def normalise_name(name: str) -> str:
    """Return a name for comparing: NFKC, one middle dot, no spaces or zero-width characters, simplified.

    The result is for matching only and is not what a release prints.
    """
    text = BLANKS.sub("", unicodedata.normalize("NFKC", name))
    # Once more, because a mark may now follow the letter that a blank kept it from.
    return unicodedata.normalize("NFKC", text).translate(_SIMPLIFIED)


def normalise_names(names: Iterable[str | None]) -> list[str | None]:
    """Return `normalise_name` of each name; nulls stay."""
    return [None if name is None else normalise_name(name) for name in names]
